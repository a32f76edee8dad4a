"""Reading answers out of text: a table of what must and must not be read, and properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layersurgery.scoring._extract import exact_match, extract_letter, extract_number

LETTERS = [
    # alone
    ("B", 1),
    ("b", 1),
    (" B. ", 1),
    ("(B)", 1),
    ("b)", 1),
    ("**C**", 2),
    ("'D'", 3),
    ("$B$", 1),
    ("A", 0),
    ("a", 0),
    ("A.", 0),
    ("\uff08B\uff09", 1),  # full-width brackets
    ("B\u3002", 1),  # full-width stop
    # at the start of a line
    ("B. red", 1),
    ("B) red", 1),
    ("(B) red", 1),
    ("B: red", 1),
    ("B, because it is red", 1),
    ("B - red", 1),
    ("B\u2014red is right", None),  # a dash without blanks may belong to a word
    ("b. red", 1),
    ("A. dog", 0),
    ("A) a dog", 0),
    ("A\nThe dog is red.", 0),
    ("A because it is a dog", 0),
    ("A is correct", 0),
    ("B red", 1),
    ("B because it is red", 1),
    ("Let us see.\nB. red", 1),
    # said to be the answer
    ("Answer: B", 1),
    ("answer: b", 1),
    ("Answer B", 1),
    ("The answer is B", 1),
    ("The answer is B.", 1),
    ("The answer is (B) red.", 1),
    ("The answer is **B**", 1),
    ("The answer is A.", 0),
    ("The answer is a.", 0),
    ("The answer is option C", 2),
    ("The correct option is (D)", 3),
    ("The correct answer is: A", 0),
    ("The answer to the question is B", 1),
    ("The answer is most likely B", 1),
    ("Option A is wrong. The answer is B.", 1),
    (r"So it is \boxed{B}.", 1),
    ("ASSISTANT: The answer is B", 1),
    # chosen or bracketed
    ("I choose B.", 1),
    ("I would go with option C", 2),
    ("It's B.", 1),
    ("Option D", 3),
    ("It must be the red one (B).", 1),
    ("B, not C", 1),
    # not read: articles, pronouns, words
    ("A dog is in the picture", None),
    ("a dog", None),
    ("The answer is a dog", None),
    ("The answer is A dog", None),
    ("It is a dog.", None),
    ("I think so", None),
    ("I", None),
    ("Dog", None),
    ("Both", None),
    ("Vitamin C is in the picture", None),
    ("the dog(s)", None),
    ("e.g. a dog", None),
    ("B-52", None),
    ("C++", None),
    ("C#", None),
    ("D'oh", None),
    ("Answer the question", None),
    ("The answer options are unclear", None),
    ("answers: none of them", None),
    ("", None),
    ("42", None),
    # not read: beyond the options
    ("E", None),
    ("The answer is F.", None),
    ("(Z)", None),
    # not read: several, or ruled out
    ("B or C", None),
    ("B and C", None),
    ("A, B", None),
    ("A/B", None),
    ("A and B", None),
    ("(A) (B)", None),
    ("(A) red, rather than (B) blue", None),
    ("B. I choose C.", None),
    ("The answer is A or B", None),
    ("The answer is A. The answer is B.", None),
    ("A. red\nB. blue\nC. green", None),
    ("A\nB", None),
    ("B. red, so the answer is C.", None),
    ("It is not (B).", None),
    ("The answer is not B", None),
    ("The answer isn't B", None),
    ("B is wrong", None),
    ("(B) is not right", None),
]


@pytest.mark.parametrize(("text", "expected"), LETTERS)
def test_letters(text, expected):
    assert extract_letter(text, 4) == expected


def test_letters_beyond_the_options_depend_on_their_number():
    assert extract_letter("The answer is E", 5) == 4
    assert extract_letter("I", 9) == 8
    assert extract_letter("B", 1) is None


@given(st.text(max_size=80), st.integers(2, 26))
def test_any_text_gives_an_option_or_none(text, n_options):
    found = extract_letter(text, n_options)
    assert found is None or 0 <= found < n_options


FORMS = ["{}", "({})", "{}.", "Answer: {}", "The answer is {}.", "{}. red", "({}) red", "Option {}", "I choose ({})."]


@given(st.integers(0, 25), st.integers(2, 26), st.sampled_from(FORMS))
def test_a_letter_is_read_exactly_if_there_is_such_an_option(index, n_options, form):
    letter = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[index]
    assert extract_letter(form.format(letter), n_options) == (index if index < n_options else None)


@given(st.sampled_from(FORMS), st.permutations("ABCDEFG"))
def test_two_answers_of_one_form_are_none(form, letters):
    first, second = letters[:2]
    assert extract_letter(f"{form.format(first)}\n{form.format(second)}", 7) is None


@given(st.lists(st.from_regex(r"[b-z][a-z]{2,8}", fullmatch=True), min_size=1, max_size=6))
def test_an_article_is_never_an_answer(words):
    words = [word for word in words if word not in ("because", "since", "due", "and", "not")] or ["dog"]
    for start in ("A ", "a ", "It is a ", "The answer is a ", "There is a "):
        assert extract_letter(start + " ".join(["red", *words]), 4) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", 7),
        ("7.", 7),
        ("-3.5", -3.5),
        ("\u22123", -3),  # a typographic minus
        ("1,250 apples", 1250),
        ("12cm", 12),
        ("$5", 5),
        ("50%", 50),
        ("2e3", 2000),
        (".5", 0.5),
        ("There are 7 of the 9, so the answer is 2.", 2),
        ("Answer: 4", 4),
        ("The answer to question 3 is 5", 5),
        ("7 and 7", 7),
        ("3-4", None),
        ("1/2", None),
        ("3 or 4", None),
        ("1,2,3", None),
        ("A4", None),
        ("1.2.3", None),
        ("seven", None),
        ("-", None),
        ("", None),
    ],
)
def test_numbers(text, expected):
    assert extract_number(text) == expected


@given(st.integers(-(10**9), 10**9))
def test_a_number_is_read_as_written(number):
    assert extract_number(f"The answer is {number:,}.") == number
    assert exact_match(str(number), f"{number:,}")


@pytest.mark.parametrize(
    ("text", "expected", "same"),
    [
        ("Red", "red", True),
        ("  red. ", "red", True),
        ("'red'", "red", True),
        ("The answer is red.", "red", True),
        ("Answer: the dog", "dog", True),
        ("dark  blue", "dark blue", True),
        ("A", "a", True),
        ("3.0", "3", True),
        ("3 apples", "3", True),
        ("4", "3", False),
        ("3 or 4", "3", False),
        ("three", "3", False),
        ("dark red", "red", False),
        ("not red", "red", False),
        ("", "red", False),
    ],
)
def test_exact_match(text, expected, same):
    assert exact_match(text, expected) is same
