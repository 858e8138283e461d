"""The shape of the code: who may import whom, where heavy packages may be imported, how long a module may be."""

import ast
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {"mmecg": ".", "mmecg_index": "index", "mmecg_server": "server", "mmecg_pb": "protos"}

# Top-level package or mmecg module -> what it may import of ours; its own package always.
# mmecg.cli and mmecg.client stand at the edge: the one starts the engine and the server, the other speaks gRPC.
BASE = {"errors"}
VALUES = BASE | {"ecg", "vitals", "report", "config"}
DOMAIN = VALUES | {"study", "embedding", "quality", "neighbours"}
MODELS = DOMAIN | {"lettering", "search", "datasets", "modeling", "labels", "encoders", "prompts"}
LIBRARY = MODELS | {"administration", "assets", "bundle", "ingester", "retriever", "prediction", "plotting"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "administration": set(),
    "assets": set(),
    **dict.fromkeys(("ecg", "vitals", "report", "config"), VALUES),
    **dict.fromkeys(("study", "embedding", "quality", "neighbours"), DOMAIN),
    **dict.fromkeys(
        ("search", "exact_index", "datasets", "modeling", "labels", "encoders", "lettering", "plotting"), MODELS
    ),
    **dict.fromkeys(("bundle", "ingester", "retriever", "prediction"), LIBRARY | {"training"}),
    **dict.fromkeys(("training", "evaluation"), LIBRARY | {"training", "evaluation"}),
    "adaptation": LIBRARY | {"training", "evaluation"},
    "pretraining": LIBRARY | {"training", "evaluation", "adaptation"},
    "experiments": LIBRARY | {"training", "evaluation", "adaptation", "pretraining"},
    "client": DOMAIN | {"search", "retriever", "datasets", "labels", "prediction", "mmecg_pb"},
    "cli": LIBRARY
    | {"adaptation", "pretraining", "experiments"}
    | {"mmecg", "training", "evaluation", "client", "mmecg_index", "mmecg_server"},
    "mmecg_index": LIBRARY | {"mmecg"},
    "mmecg_server": LIBRARY | {"mmecg", "mmecg_pb", "mmecg_index", "client"},
    "mmecg_pb": {"mmecg_pb"},
}
# Package -> the only places that may import it.
CONFINED = {
    "faiss": ("index/",),
    "grpc": ("server/", "protos/", "mmecg/client/"),
    "wfdb": ("mmecg/datasets/",),
    "matplotlib": (
        "mmecg/lettering.py",
        "mmecg/plotting.py",
        "mmecg/evaluation/plots.py",
        "mmecg/evaluation/prediction_plots.py",
        "mmecg/training/curves.py",
        "mmecg/experiments/scatter.py",
        "benchmarks/",
    ),
}
HEAVY = ("torch", "faiss", "grpc", "wfdb", "matplotlib", "sentence_transformers", "scipy", "sklearn", "rich")
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60


def modules():
    for package, folder in SOURCES.items():
        yield from sorted((ROOT / folder / package).rglob("*.py"))


def is_generated(path):
    return "_pb2" in path.name


def relative(path):
    return path.relative_to(ROOT).as_posix()


@cache
def imported(path):
    """Return (line, dotted name) of every import, also those inside functions and those for type checkers only."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno}: relative import"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def unit(dotted):
    """Return the name in ALLOWED of a dotted module: ``mmecg.datasets.wfdb`` is ``datasets``."""
    top, *rest = dotted.split(".")
    return rest[0] if top == "mmecg" and rest else top


def unit_of(path):
    package = next(name for name, folder in SOURCES.items() if (ROOT / folder / name) in path.parents)
    if package != "mmecg":
        return package
    first = path.relative_to(ROOT / "mmecg").parts[0]
    return Path(first).stem


def test_imports_follow_the_arrows():
    wrong = []
    for path in modules():
        source = unit_of(path)
        if source in ("__init__", "__main__"):  # the face of the library, and `python -m mmecg`
            continue
        assert source in ALLOWED, f"{relative(path)}: say in ALLOWED what {source} may import"
        for line, name in imported(path):
            target = unit(name)
            ours = name.split(".")[0] in SOURCES
            if ours and target != source and target not in ALLOWED[source]:
                wrong.append(f"{relative(path)}:{line}: {source} imports {target}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("package", "places"), CONFINED.items(), ids=CONFINED)
def test_package_is_imported_only_in_its_place(package, places):
    found = [(path, line) for path in modules() for line, name in imported(path) if name.split(".")[0] == package]
    assert found, f"nothing imports {package}; drop it from the table and from pyproject.toml"
    wrong = [f"{relative(path)}:{line}" for path, line in found if not relative(path).startswith(places)]
    assert not wrong, f"{package} is imported in {wrong}, allowed in {places}"


def test_only_the_servers_main_picks_the_engine():
    importers = {
        relative(path)
        for path in (ROOT / "server").rglob("*.py")
        for _, name in imported(path)
        if name.split(".")[0] == "mmecg_index"
    }
    assert importers <= {"server/mmecg_server/__main__.py"}


def loaded_by(statement):
    """Return which heavy packages a fresh interpreter holds after a statement."""
    code = f"import sys; {statement}; print(*sorted(set({HEAVY!r}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(("package", "folder"), SOURCES.items())
def test_every_package_is_marked_as_typed(package, folder):
    assert (ROOT / folder / package / "py.typed").is_file()


def test_importing_the_library_is_light():
    assert loaded_by("import mmecg") == set()


def test_importing_the_command_line_is_light():
    assert loaded_by("import mmecg.cli; mmecg.cli.build_parser()") == set()


def test_the_client_needs_neither_torch_nor_faiss():
    assert not loaded_by("import mmecg.client") & {"torch", "faiss", "sentence_transformers", "wfdb", "sklearn", "rich"}


def test_all_is_complete_and_sorted_as_ruff_sorts():
    face = import_module("mmecg")
    tree = ast.parse((ROOT / "mmecg/__init__.py").read_text(encoding="utf-8"))
    names = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(face.__all__) == names
    assert len(face.__all__) == len(set(face.__all__))


@pytest.mark.parametrize("path", [path for path in modules() if path.name == "__init__.py"], ids=relative)
def test_every_all_names_what_is_there(path):
    package = ".".join(path.parent.relative_to(ROOT).parts)
    for folder in ("index.", "server.", "protos."):
        package = package.removeprefix(folder)
    module = import_module(package)
    assert [name for name in getattr(module, "__all__", ()) if not hasattr(module, name)] == []


def test_modules_and_functions_are_short():
    wrong = []
    for path in modules():
        if is_generated(path):
            continue
        text = path.read_text(encoding="utf-8")
        if (lines := text.count("\n")) > MAX_MODULE_LINES:
            wrong.append(f"{relative(path)}: {lines} lines, at most {MAX_MODULE_LINES}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    wrong.append(f"{relative(path)}:{node.lineno}: {node.name} has {length} lines")
    assert not wrong, "\n".join(wrong)
