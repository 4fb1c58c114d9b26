import pytest

from datamodules.sources.thoughts import ThoughtParts, split_reply


@pytest.mark.parametrize(
    ("reply", "thought", "answer", "has_debris"),
    [
        ("<think>It is red.</think><answer>a flag\n<gen_emb>", "It is red.", "a flag", False),
        ("<think>\nIt is red.\n</think>\n<answer> a flag </answer>\n<gen_emb>", "It is red.", "a flag", False),
        ("<think>It is red.</think><answer><|begin_of_box|>a flag<|end_of_box|>\n<gen_emb>", "It is red.", "a flag", True),
        ("<think>It <|begin_of_box|>is red.</think><answer>a flag", "It is red.", "a flag", True),
        ("<think><think>It is red.</think>", "It is red.", "", True),
        ("<think>It is red, and so on", "", "", False),
        ("It is red.", "It is red.", "", False),
        ("It is red.</think><answer>a flag", "It is red.", "a flag", False),
        ("It is red.\n<gen_emb>", "It is red.", "", False),
        ("<answer>a flag</answer>", "", "a flag", False),
        ("2 < 3 and <b>bold</b>", "2 < 3 and <b>bold</b>", "", False),
        ("", "", "", False),
    ],
)
def test_reply_is_split_and_cleaned(reply: str, thought: str, answer: str, has_debris: bool) -> None:
    assert split_reply(reply) == ThoughtParts(thought, answer, has_debris)


def test_answer_closes_the_thought_where_it_is_wanted() -> None:
    parts = split_reply("<think>It is red.</think><answer>a flag")
    assert parts.joined(with_answer=True) == "It is red.\na flag"
    assert parts.joined(with_answer=False) == "It is red."
    assert split_reply("<answer>a flag").joined(with_answer=True) == ""  # an answer alone is no thought
