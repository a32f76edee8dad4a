"""The library has no table of architectures."""

from __future__ import annotations

from tests.architectures.own_words import named_architectures

# Words of the vocabulary of hints: kinds of mixers that were named after the models that had them first, and parts of
# models that go by the name of an encoder.
WORDS = {"mamba", "rwkv", "xlstm", "perceiver", "vit", "siglip", "sam", "whisper"}


def test_no_model_is_named_but_for_the_words_of_the_vocabulary():
    found = named_architectures()
    assert set(found) == WORDS
    assert set.union(*found.values()) == {"sites/_names.py"}
