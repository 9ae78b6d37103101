"""The table of rules in rpt_core.reasoning.choices, by hand-written outputs with the expected letter."""

import pytest

from rpt_core.reasoning.choices import extract_choice

OPTIONS = ["the aortic valve", "the mitral valve", "three", "a number", "zero"]
CASES = [
    # box
    (r"\boxed{C}", "C"), (r"\boxed{(C)}", "C"), (r"\boxed{\text{C}}", "C"), (r"\boxed{\text{(B)}}", "B"), (r"\boxed{\mathbf{D}}", "D"),
    (r"\boxed{ B }", "B"), (r"\boxed{C. three}", "C"), (r"\boxed{C) three}", "C"), ("The final answer is $\\boxed{B}$.", "B"),
    # the last box wins, and a box beats a statement
    (r"\boxed{A} no, \boxed{B}", "B"), (r"The answer is (A). \boxed{B}", "B"), (r"\boxed{B} The answer is (A).", "B"),
    # a box that names no option decides nothing
    (r"\boxed{7} so the answer is C", "C"), (r"\boxed{J}", None), (r"\boxed{AB}", None), (r"\boxed{}", None),
    # box text
    (r"\boxed{the mitral valve}", "B"), (r"\boxed{\text{Three}}", "C"), (r"\boxed{ zero}", "E"),
    # statement
    ("The answer is (C).", "C"), ("the answer is C", "C"), ("Answer: C", "C"), ("**Answer: B**", "B"), ("Answer: (D)", "D"),
    ("The correct answer is **D**.", "D"), ("The correct option is B.", "B"), ("Therefore, the answer is: (A)", "A"),
    ("the answer is option B", "B"), ("My choice: E", "E"), ("ANSWER: C", "C"), ("The answer should be D.", "D"),
    ("The answer is $C$.", "C"), ("The answer is A.", "A"),
    # late corrections: the last statement wins
    ("The answer is A. Wait, no. The answer is B.", "B"), ("Answer: C\nAnswer: D", "D"),
    # a statement behind a thought counts, one inside does not
    ("<think>the answer is A</think>The answer is B", "B"), ("<think>the answer is A</think>", None), ("<think>\\boxed{C}", None),
    # closing line
    ("Thinking...\nC", "C"), ("It must be\n(B)", "B"), ("So:\nC.", "C"), ("D) a number", "D"),
    # only text
    ("The answer is the mitral valve.", "B"), ("Answer: zero", "E"), ("The answer is a number.", "D"),
    # look-alikes
    ("Because of A", None), ("The answer is Because", None), ("I think B is right", None), ("The answer is a matter of taste", None),
    ("answer is (J)", None), ("Option A is wrong.", None), ("vitamin C", None), ("The answer is I think unclear", None),
    # several at once
    ("The answer is A or B", None), ("The answer is A and C.", None), ("The answer is (A), (B)", None),
    # negation
    ("The answer is not A.", None),
    # refusals, truncation, nothing
    ("I cannot answer that.", None), ("I'm sorry, but I can't help with this.", None), ("", None), (r"\boxed{", None), (r"\boxed{C", None),
    (r"\boxed{A} and then \boxed{", None), ("The answer is", None), ("The answer is (", None),
]


@pytest.mark.parametrize(("response", "letter"), CASES)
def test_each_output_gives_the_stated_letter(response: str, letter: str | None) -> None:
    assert extract_choice(response, len(OPTIONS), OPTIONS) == letter


def test_there_are_at_least_sixty_outputs() -> None:
    assert len({response for response, _ in CASES}) >= 60


def test_only_letters_of_the_question_count() -> None:
    assert extract_choice("The answer is (D).", 4) == "D"
    assert extract_choice("The answer is (D).", 3) is None
    assert extract_choice(r"\boxed{J}", 10) == "J"


def test_an_option_text_that_stands_twice_decides_nothing() -> None:
    assert extract_choice(r"\boxed{same}", 2, ["same", "same"]) is None
