import ast
import dataclasses
import inspect
from typing import get_type_hints

import pytest

from datamodules.sources import SOURCES, has_option


def documented_fields(options: type[object]) -> set[str]:
    """Names of the fields of one class body that a docstring stands under."""
    (tree,) = ast.parse(inspect.getsource(options)).body
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id
        for field, below in zip(tree.body, tree.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
    }


@pytest.mark.parametrize("kind", SOURCES)
def test_every_option_says_what_it_means(kind: str) -> None:
    options = get_type_hints(SOURCES[kind])["options"]
    bodies = [base for base in options.__mro__ if "__dataclass_fields__" in vars(base)]
    documented = {name for body in bodies for name in documented_fields(body)}
    assert {field.name for field in dataclasses.fields(options)} == documented


def test_options_of_a_kind_can_be_asked_for() -> None:
    assert has_option("jsonl", "with_cot")
    assert has_option("twn", "with_cot")
    assert not has_option("mmeb_train", "with_cot")
    assert not has_option("nothing", "with_cot")
