"""The house: which room may import which. Read from the code, so no arrow goes up and none in a circle."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A room is a folder with code, or a file beside them. From the ground up: a room imports only what stands before it in
# this table, and of that what its line names.
MAY_IMPORT = {
    "phases": "",
    "durable_files": "",
    "settings": "",
    "command_line": "durable_files settings",
    "model_config": "settings",
    "config": "model_config phases settings",
    "models": "config durable_files",
    "data": "config durable_files model_config",
    "transfer": "command_line config model_config models",
    "inference": "config data models phases",
    "training": "command_line config durable_files model_config models phases transfer",
    "report": "command_line config durable_files phases transfer",
    "run": "command_line config data durable_files models phases report settings training transfer",
    "hugging_face": "command_line config data durable_files models phases report",
    "generate": "command_line config data inference models training",
    "evaluate": "command_line config data durable_files inference models training transfer",
    "train_tinystories": "command_line models phases report run training transfer",
    "benchmarks": "command_line config data models phases report run training transfer",
}


def rooms(root: Path) -> dict[str, list[Path]]:
    """The files of each room. Tests are none."""
    files = {path.stem: [path] for path in root.glob("*.py") if not path.stem.startswith("test_")}
    folders = {path.parent.name: sorted(path.parent.rglob("*.py")) for path in root.glob("*/__init__.py")}
    return files | {name: paths for name, paths in folders.items() if name != "tests"}


def arrows(root: Path) -> dict[str, dict[str, Path]]:
    """For each room the other rooms that it imports, anywhere in its code, and a file that does."""
    found, all_rooms = {}, rooms(root)
    for room, paths in all_rooms.items():
        found[room] = {}
        for path in paths:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    modules = [alias.name for alias in node.names]
                else:
                    modules = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
                for other in {module.split(".")[0] for module in modules} & all_rooms.keys() - {room}:
                    found[room][other] = path
    return found


def not_allowed(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)} imports {other}"
        for room, others in arrows(root).items()
        for other, path in others.items()
        if other not in MAY_IMPORT.get(room, "").split()
    ]


def test_no_room_imports_what_it_may_not():
    assert not_allowed(ROOT) == []


def test_the_table_names_every_room_and_no_arrow_that_is_not_there():
    assert {room: set(others.split()) for room, others in MAY_IMPORT.items()} == {
        room: set(others) for room, others in arrows(ROOT).items()
    }


def test_nothing_goes_up_or_in_a_circle():
    below = set()
    for room, others in MAY_IMPORT.items():
        assert set(others.split()) <= below, f"{room} imports what is above it"
        below.add(room)


@pytest.mark.parametrize(
    "code",
    [
        "import run.loop",
        "from run.loop import train_phase",
        "def late():\n    from run import loop",
        "import torch, run",
    ],
)
def test_an_arrow_up_is_found(code, tmp_path):
    for name in ("transfer", "run"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "run" / "loop.py").touch()
    assert not_allowed(tmp_path) == []
    (tmp_path / "transfer" / "made_up.py").write_text(code)
    assert not_allowed(tmp_path) == ["transfer/made_up.py imports run"]
