"""Every setting is documented under its field."""

import ast
from pathlib import Path

import twn_lightning.configs

FOLDER = Path(str(twn_lightning.configs.__file__)).parent


def test_every_field_has_a_docstring() -> None:
    missing = []
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef):
                continue
            for field, following in zip(node.body, [*node.body[1:], None], strict=True):
                documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant) and isinstance(following.value.value, str)
                if isinstance(field, ast.AnnAssign) and not documented:
                    missing.append(f"{path.name}: {node.name}.{ast.unparse(field.target)}")
    assert not missing
