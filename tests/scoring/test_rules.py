"""Every rule against one table of answers, against the benchmarks' own cases, and against any text."""

from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from layersurgery.errors import ScoringError
from layersurgery.scoring import RULES, Judgement, judge
from layersurgery.tasks import LETTERS, Sample

S1 = ("cat", "dog", "bird", "fish")
S2 = ("Yes", "No")
S3 = ("2", "12", "22", "5")
S4 = ("blue", "dark blue", "green", "red")
S5 = (*S1, "snake")
S6 = ("a red car on the road", "two people on a bench", "a glass of cold water", "a dog with a blue ball")

# Row, options, output; then what a careful reader takes, what VLMEvalKit took without a judge, and what MMMU's own
# evaluation takes (None: nothing, a refusal, or a draw by chance), the last two as outputs of the real code.
TABLE = [
    (1, S1, "B", "B", "B", "B"),
    (2, S1, "b", "B", None, None),
    (3, S1, "B.", "B", "B", "B"),
    (4, S1, "(B)", "B", "B", "B"),
    (5, S1, "b)", "B", None, None),
    (6, S1, "B) dog", "B", "B", None),
    (7, S1, "B. dog", "B", "B", None),
    (8, S1, "b. dog", "B", "B", None),
    (9, S1, "B:dog", "B", "B", None),
    (10, S1, "B;", "B", "B", "B"),
    (11, S1, "Option B", "B", "B", "B"),
    (12, S1, "Answer: (B)", "B", "B", "B"),
    (13, S1, "Answer: B", "B", "B", "B"),
    (14, S1, "Answer:B", "B", "B", None),
    (15, S1, "ANSWER: B", "B", "B", "B"),
    (16, S1, "The answer is B.", "B", "B", "B"),
    (17, S1, "the answer is b", "B", None, None),
    (18, S1, "**B**", "B", "B", None),
    (19, S1, "**Answer: B**", "B", "B", None),
    (20, S1, "The correct answer is **B. dog**.", "B", "B", "B"),
    (21, S1, 'The option is "B".', "B", None, None),
    (22, S1, "'B'", "B", None, "B"),
    (23, S1, "$\\boxed{B}$", "B", "B", None),
    (24, S1, "<answer>B</answer>", "B", None, None),
    (25, S1, "`B`", "B", None, None),
    (26, S1, "B\n", "B", "B", None),
    (27, S1, "assistant\n\nB", "B", "B", None),
    (28, S1, "B<|im_end|>", "B", None, None),
    (29, S1, "<think>A or C?</think>B", "B", None, None),
    (30, S1, "B, because the animal barks.", "B", "B", None),
    (31, S1, "B because the animal in the photo is clearly barking loudly", "B", "B", "B"),
    (32, S1, "The animal has four legs and it barks, therefore it cannot be a bird. Answer: B", "B", "B", "B"),
    (33, S1, "A is wrong because it has no wings. The answer is C.", "C", None, "C"),
    (34, S1, "Let us look step by step. A is wrong. C is wrong. D is wrong. So the answer is B", "B", None, "B"),
    (35, S1, "First choose the option. D is my choice since it swims in water all day and has fins", "D", "D", "D"),
    (36, S1, "Either (A) or (C). I choose (C).", "C", None, "C"),
    (37, S1, "B or C, but B is better", "B", None, "B"),
    (38, S1, "A and B", None, None, "B"),
    (39, S1, "B/C", None, None, None),
    (40, S1, "dog", "B", "B", None),
    (41, S1, "Dog", "B", "B", None),
    (42, S1, "The animal is a dog.", "B", "B", None),
    (43, S1, "A dog", "B", "A", "A"),
    (44, S1, "A dog is shown in the picture", "B", "A", "A"),
    (45, S1, "I would say A dog is here so B", "B", "B", "B"),
    (46, S1, "This is a dog, not a cat.", "B", None, "A"),
    (47, S1, "It looks like a hotdog stand.", None, "B", "B"),
    (48, S6, "The picture shows two people on a bench", "B", "B", "B"),
    (49, S6, "There are two people sitting on a bench", "B", None, None),
    (50, S4, "dark blue", "B", None, None),
    (51, S4, "blue", "A", "A", None),
    (52, S3, "12", "B", None, None),
    (53, S3, "There are 5 of them", "D", "D", None),
    (54, S2, "No", "B", "B", None),
    (55, S2, "Nothing", None, "B", None),
    (56, S2, "I know it is not visible", None, "B", "B"),
    (57, S1, "", None, None, None),
    (58, S1, "nan", None, None, None),
    (59, S1, "E", None, None, None),
    (60, S5, "E", "E", "E", "E"),
    (61, S1, "Z", None, None, None),
    (62, S1, "I'm sorry, but I can't help with that.", None, None, None),
    (63, S1, "I'm sorry, but without the image provided I cannot tell.", None, None, None),
    (64, S1, "Cannot determine the answer", None, None, None),
    (65, S1, "None of the above", None, None, None),
    (66, S1, "Failed to obtain answer via API. B", None, None, "B"),
    (67, S1, "\u7b54\u6848\u662fB", "B", None, None),
    (68, S1, "\u7b54\u6848\u662f B", "B", "B", "B"),
    (69, S1, "\u9009B\u3002", "B", None, None),
    (70, S1, "\uff08B\uff09", "B", None, None),
    (71, S1, "\uff22", "B", None, None),
    (72, S1, "\uc815\ub2f5\uc740 B\uc785\ub2c8\ub2e4", "B", None, None),
    (73, S1, "\u041e\u0442\u0432\u0435\u0442: B", "B", "B", "B"),
    (74, S1, "\u041e\u0442\u0432\u0435\u0442: \u0412", None, None, None),
    (75, S1, "C. A pretty bird", "C", "C", "A"),
    (76, S1, "ANSWER: AB", None, None, None),
    (77, S1, "The answer is B. Note that A is a common distractor.", "B", None, "A"),
    (78, S1, "The image shows DNA in a lab", None, None, None),
    (79, S1, "I think it is a CD player", None, None, None),
]

# Where the strictest rule reads nothing although a careful reader does: "B or C, but B is better", "a dog, not a cat",
# and a text that is quoted with a word too many.
UNREAD = {37, 46, 49}


def cases(column, without=()):
    return [pytest.param(row[1], row[2], row[column], id=str(row[0])) for row in TABLE if row[0] not in without]


def choice(text, rule, options):
    return judge(text, Sample("q", "Which?", tuple(options), 0), rule).answer


def letter(text, rule, options):
    index = choice(text, rule, options)
    return None if index is None else LETTERS[index]


def test_the_table_is_whole():
    assert [row[0] for row in TABLE] == list(range(1, 80))


@pytest.mark.parametrize(("options", "text", "expected"), cases(3, UNREAD))
def test_letters_table(options, text, expected):
    assert letter(text, "letters-v1", options) == expected


@pytest.mark.parametrize(("options", "text", "expected"), cases(3))
def test_letters_never_read_another_option_than_a_careful_reader(options, text, expected):
    assert letter(text, "letters-v1", options) in (None, expected)


@pytest.mark.parametrize(("options", "text", "expected"), cases(4))
def test_vlmevalkit_table(options, text, expected):
    assert letter(text, "vlmevalkit-2024", options) == expected


@pytest.mark.parametrize(("options", "text", "expected"), cases(5))
def test_mmmu_table(options, text, expected):
    assert letter(text, "mmmu-v1", options) == expected


@pytest.mark.parametrize(("options", "text", "expected"), cases(3))
def test_mathvista_reads_letters_as_the_strictest_rule_does(options, text, expected):
    assert letter(text, "mathvista-v1", options) == letter(text, "letters-v1", options)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Sorry, I can't help with images of people yet. B", None),
        ("I can't process this file. B", None),
        ("cannot determine the answer, B", "B"),  # in this case only with a capital
        ("Z or B", "B"),
        ("Z dog", None),  # a lone Z ends the reading
        ("A B dog", "B"),  # two letters do not
        ("Failed to obtain answer via API. B dog", "B"),  # by its text
        ("Failed to obtain answer via API. B", None),
        ("a {B} c", "B"),
        ("B?", None),  # this mark is not among those that are blanked
    ],
)
def test_vlmevalkit_steps(text, expected):
    assert letter(text, "vlmevalkit-2024", S1) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A is close, but (C) and then (B) and (D)", "D"),
        ("(C), not A or B", "C"),  # brackets outweigh letters between blanks
        ("B'?!.", "B"),
        ("B!?", None),  # the marks are stripped one after the other, and "!" before "?"
        ("one two three four dog", None),  # texts count in answers of more than five words
        ("one two three four five dog", "B"),
        ("one two three four a dog or a CAT", "A"),
    ],
)
def test_mmmu_steps(text, expected):
    assert letter(text, "mmmu-v1", S1) == expected


def test_mmmu_takes_the_first_of_options_that_begin_at_one_place():
    assert letter("there it was a red dog house", "mmmu-v1", ("red", "red dog")) == "A"


@pytest.mark.parametrize(
    ("gold", "text", "read", "right"),
    [
        ("8", "The answer is 8.", {8.0}, True),
        ("8", "I think 18", {18.0, "i think 18"}, False),
        ("C", "the answer is c", {" c", "c "}, True),
        ("C", "acid", {"acid"}, False),
        ("Tampa", "It is tampa bay", {"tampa bay"}, True),
        ("60", "60.0%", {"60.0%", 60.0}, True),
        ("1,000", "1000", {1000.0}, True),
        ("12", "So x = 12. Then y = 5", {5.0}, False),
        (["24/7", "3.429"], "3.429", {3.43}, True),
        ("['24/7', '3.429']", "3.429", {3.43}, True),
        (8, "8", {8.0}, True),
        ("[0, 1)", "it is [0, 1)", {"[0, 1)", 1.0}, True),
        ("y", "x = 3\ny", {"x = 3\ny", 3.0}, False),  # an equation counts in the last line only; "y" is padded
        ("3", "therefore 3\nso what", {3.0, "what"}, True),
        ("4", "1,234 or 2e3 or -2 or 9cm", {"1,234 or 2e3 or -2 or 9cm", 1234.0, 234.0, 2000.0, 3.0, -2.0}, False),
        ("red", "the answer is:\nred", {"is:"}, False),
        ("", "nothing", {"nothing"}, False),
        ("x", "so x =", {"so x ="}, True),  # nothing follows the last lead: the whole answer counts
        ("2", "it is 2.\nThe answer is \nok", {2.0, "is"}, True),
    ],
)
def test_mmmu_open(gold, text, read, right):
    found = judge(text, Sample("q", "Which?", answer=gold, kind="open"), "mmmu-v1")
    assert set(found.answer) >= {one for one in read if isinstance(one, str)}
    assert {one for one in found.answer if isinstance(one, float)} == {one for one in read if isinstance(one, float)}
    assert found.correct is right


@pytest.mark.parametrize("text", ["", "  \n", "."])
def test_mmmu_open_reads_nothing_in_nothing(text):
    assert judge(text, Sample("q", "Which?", answer="8", kind="open"), "mmmu-v1") == Judgement(None, correct=False)


ANGLES = ("30\u00b0", "45\u00b0", "60\u00b0", "90\u00b0")


@pytest.mark.parametrize(
    ("options", "text", "expected"),
    [
        (ANGLES, "B", 1),
        (ANGLES, "(B)", 1),
        (ANGLES, "b", 1),
        (ANGLES, "B. 45\u00b0", 1),
        (ANGLES, "45\u00b0", 1),
        (ANGLES, "45", None),
        (ANGLES, 'The answer is "45\u00b0".', 1),
        (ANGLES, "The correct answer is (B) 45\u00b0.", 1),
        (ANGLES, "(A) is too small, so (B)", 1),
        (ANGLES, "135\u00b0", None),
        (ANGLES, "", None),
        (("A", "B", "C", "D"), "line C is longest", 2),
        # and what the table leaves out
        (ANGLES, "The angle at C is 45\u00b0", None),  # a letter in passing against a text in passing
        (ANGLES, "it measures 45\u00b0 there", 1),
        (ANGLES, "30\u00b0 or 45\u00b0", None),
        (ANGLES, "not 45\u00b0", None),
        (ANGLES, "-45\u00b0", None),
        (ANGLES, "1.45\u00b0", None),
        (("4", "5"), "about 4/5", None),
        (("A", "B", "C", "D"), "a line is longest", None),
        (("B", "A"), "B", None),  # the letter of one, the text of the other
        (("blue", "dark blue"), "it was dark blue all over", 1),
        (("red", "red"), "red", None),
        (S1, "A or B, so A or B", None),
        (S1, "it cannot be A or B, so not (B)", None),
        (S1, "(A) or (B), so the thing is I", None),
        (S1, "written in C++", None),
    ],
)
def test_mathvista_choices(options, text, expected):
    assert choice(text, "mathvista-v1", options) == expected


@pytest.mark.parametrize(
    ("kind", "gold", "precision", "text", "right"),
    [
        ("integer", "14", None, "14", True),
        ("integer", "14", None, "14.0", True),
        ("integer", "14", None, "The answer is 14", True),
        ("integer", "14", None, "14 cm", True),
        ("integer", "14", None, "fourteen", None),
        ("integer", "0", None, "0", True),
        ("float", "1.2", 1, "1.20", True),
        ("float", "1.2", 1, "1.25", True),
        ("float", "1.2", 1, "1.24", True),
        ("float", "1.2", 1, "1.2 m", True),
        ("list", "[1, 2]", None, "[1, 2]", True),
        ("list", "[1, 2]", None, "[1,2]", True),
        # and what the table leaves out
        ("integer", 14, None, "14.7", False),
        ("integer", 14, 0, "14.3", False),  # a precision is for other kinds
        ("integer", "1250", None, "1,250 people", True),
        ("integer", "-3", None, "\u22123", True),
        ("integer", "14", None, "3 + 11 makes 14 cm^2", True),
        ("integer", "1500", None, "1.5 \u00d7 10^{3} m", True),
        ("integer", "3", None, "2^3", None),
        ("integer", "2", None, "1/2", None),
        ("float", "0.5", 1, "1/2 = 0.5", True),
        ("float", 1.2, None, "1.24", False),
        ("float", "1.2", 1, "1.3", False),
        ("list", ("1", "2"), None, "[2, 1]", False),
        ("list", ("1", "2"), None, "[1, 2, 3]", False),
        ("list", ("1.2",), 1, "not [4] but [1.24]", True),
        ("list", ("red", "2"), None, "['red', 2]", True),
        ("list", ("1",), None, "[1] as in [see the figure]", None),
        ("list", ("1",), None, "[]", None),
        ("list", ("1",), None, "1", None),
    ],
)
def test_mathvista_numbers_and_lists(kind, gold, precision, text, right):
    found = judge(text, Sample("q", "Which?", answer=gold, kind=kind, precision=precision), "mathvista-v1")
    assert (found.answer is None) is (right is None)
    assert found.correct is bool(right)


@pytest.mark.parametrize(
    ("kind", "gold", "text", "right"),
    [
        ("integer", "14", "14", True),
        ("integer", "14", "14.0", None),
        ("integer", "14", "The answer is 14", None),
        ("integer", "0", "0", True),
        ("float", "1.2", "1.20", True),
        ("float", "1.2", "1.25", False),
        ("float", "1.2", "nan", None),
        ("float", "1.2", "1.2 m", None),
        ("list", "[1, 2]", "[1, 2]", None),
        ("open", "Tampa", "It is Tampa.", True),
        ("open", "Tampa", "A", True),  # its own first option
        ("open", "Tampa", "Orlando", None),
        ("open", "Tampa", "none of the Other Answers", False),
        ("open", "C", "C", False),  # a letter that its two options do not have
        ("open", "B", "B", True),  # and one that they have
        ("open", "B", "Other Answers", True),
    ],
)
def test_vlmevalkit_without_its_judge(kind, gold, text, right):
    found = judge(text, Sample("q", "Which?", answer=gold, kind=kind, precision=1), "vlmevalkit-2024")
    assert (found.answer is None) is (right is None)
    assert found.correct is bool(right)


@pytest.mark.parametrize(
    ("kind", "gold", "text", "right"),
    [
        ("float", "7", "The answer is 7.", True),
        ("float", "7", "either 7 or 8", None),  # more strictly than MathVista's, which takes the last
        ("integer", "1,250", "1250", True),
        ("list", "[1, 2]", "[1, 2]", True),
        ("open", "Tampa", "It is Tampa", False),
        ("open", "Tampa", "The answer is Tampa.", True),
        ("open", ("grey", "gray"), "Gray", True),
        ("open", "Tampa", "...", None),
    ],
)
def test_letters_for_other_kinds(kind, gold, text, right):
    found = judge(text, Sample("q", "Which?", answer=gold, kind=kind))
    assert (found.answer is None) is (right is None)
    assert found.correct is bool(right)


def test_what_is_not_read_cannot_be_right():
    with pytest.raises(ScoringError, match="never guessed"):
        Judgement(None, correct=True)


WORDS = ["the", "picture", "shows", "some", "water", "near", "trees", "and", "grass", "while", "people", "walk"]
CHATTER = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)
READ = [
    ("letters-v1", "{before}. The answer is ({letter}). {after}."),
    ("letters-v1", "{before}\n{letter}. {after}"),
    ("vlmevalkit-2024", "{before} **{letter}**: {after}"),
    ("vlmevalkit-2024", "{before} {letter} {after}"),
    ("mmmu-v1", "{before} ({letter}) {after}"),
    ("mmmu-v1", "{before} {letter} {after}"),
    ("mathvista-v1", "{before}. The answer is ({letter}). {after}."),
    ("mathvista-v1", "{before}, hence ({letter})"),
]


@pytest.mark.parametrize(("rule", "form"), READ)
@given(before=CHATTER, after=CHATTER, index=st.integers(0, 3))
def test_a_letter_is_found_in_chatter(rule, form, before, after, index):
    text = form.format(before=before, after=after, letter="ABCD"[index])
    assert choice(text, rule, ("one", "two", "three", "four")) == index


@pytest.mark.parametrize("rule", RULES)
@given(text=CHATTER)
def test_chatter_alone_is_never_credited(rule, text):
    assert choice(text, rule, ("one", "two", "three", "four")) is None


PHRASES = ["the answer", "is", "an option", "I see", "because", "(s)", "it's", "choose", "12", "E", ",", "a hotdog"]


@given(st.lists(st.sampled_from([*WORDS, *PHRASES]), max_size=12))
def test_text_that_names_no_option_is_never_credited_by_letters(words):
    assert choice(" ".join(words), "letters-v1", S1) is None


@given(st.text(max_size=80), st.sampled_from(sorted(RULES)))
def test_what_is_read_never_depends_on_chance(text, rule):
    assert len({choice(text, rule, S1) for _ in range(3)}) == 1


@example("The answer is \u212a", ["x"] * 26)  # the Kelvin sign, which is a K where case is ignored
@example("Answer: \u0130", ["x"] * 26)
@example("so\u017f (B) [\x00]", ["", "A", "\\", "("])
@given(st.text(max_size=80), st.lists(st.text(max_size=8), min_size=1, max_size=26))
def test_no_rule_raises(text, options):
    for name, rule in RULES.items():
        for kind in rule.kinds:
            given = (tuple(options), 0) if kind == "mcq" else ((), "[1]" if kind == "list" else "1")
            found = judge(text, Sample("q", "Which?", *given, kind=kind), name)
            assert found.answer is None or kind != "mcq" or 0 <= found.answer < len(options)


def is_right(text, gold, kind, **settings):
    return judge(text, Sample("q", "Which?", answer=gold, kind=kind, **settings), "mathvista-v1").correct


@given(st.floats(-1e6, 1e6).map(lambda number: round(number, 3)), CHATTER)
def test_a_number_is_read_as_written(number, after):
    text = f"It is {number:,.3f} {after}"
    assert is_right(text, str(number), "float", precision=3)
    assume(number)
    assert not is_right(text, str(-number), "float", precision=3)


@given(st.lists(st.integers(-99, 99), min_size=1, max_size=5), CHATTER)
def test_a_list_is_read_as_written(numbers, after):
    text = f"It is {numbers} {after}"
    assert is_right(text, tuple(map(str, numbers)), "list")
    assert is_right(text, str(numbers), "list")
    assert not is_right(text, str([*numbers, 0]), "list")


PETS, HEIGHT = Sample("pets", "Which?", S1, 0), Sample("height", "How high?", answer="7", kind="integer")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: judge("B", PETS, "letter-v1"), ["'letter-v1'", "did you mean 'letters-v1'", "'mmmu-v1'"]),
        (lambda: judge("B", PETS, "!"), ["'!'", "give one of 'letters-v1', 'vlmevalkit-2024'"]),
        (lambda: judge("7", HEIGHT, "mmmu-v1"), ["'height'", "'integer'", "only 'mcq', 'open'", "'mathvista-v1' can"]),
        (lambda: is_right("1", "one", "float"), ["'q'", "'one'", "no number"]),
        (lambda: is_right("[1]", "one", "list"), ["'q'", "'one'", "no list"]),
    ],
)
def test_what_cannot_be_read_says_what_to_do(call, words):
    with pytest.raises(ScoringError) as error:
        call()
    assert all(word in str(error.value) for word in words), error.value


def test_the_rules_cannot_be_replaced():
    with pytest.raises(TypeError):
        RULES["letters-v1"] = RULES["mmmu-v1"]
