"""What is written twice agrees: ranges, versions, licences, and the repository's address."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import nbformat
import pytest
import yaml

import notebooks
import otbook
import repository
from repository import ROOT

from . import checkout

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
#: What a package is called on conda-forge, where the name differs.
CONDA_NAMES = {"torch": "pytorch"}
ANY_ADDRESS = re.compile(r"(?:github(?:\.com)?|/gh)/([\w.-]+/otbook[\w.-]*?)(?=[\"'`\s/)#@>]|\.git\b|$)")


def split(requirement):
    """A requirement's name and its range."""
    return re.fullmatch(r"([\w.-]+)(.*)", requirement).groups()


def declared():
    """The ranges of ``pyproject.toml`` that conda users need: the package and what verifies the book."""
    extras = PROJECT["optional-dependencies"]
    names = ["notebooks", "rl", "text", "book", "test"]
    listed = sum((extras[name] for name in names), PROJECT["dependencies"])
    ranges = dict(split(r) for r in listed if not r.startswith("otbook["))
    return ranges | {"python": PROJECT["requires-python"]}


def test_environment_gives_the_same_ranges():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    plain = [d for d in environment if isinstance(d, str) and d != "pip"]
    plain += [d for d in environment[-1]["pip"] if not d.startswith("--editable")]
    expected = {CONDA_NAMES.get(name, name): span for name, span in declared().items()}
    assert dict(split(d) for d in plain) == expected


def test_the_lock_pins_everything_within_its_range():
    from packaging.specifiers import SpecifierSet

    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))
    pins = {name.replace("_", "-"): version for name, version in pins.items()}
    for name, span in declared().items():
        if name != "python":
            assert pins[name] in SpecifierSet(span), name


def test_version_and_licence_are_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert otbook.__version__ == PROJECT["version"] == citation["version"]
    assert PROJECT["license"] in citation["license"]


def test_importing_the_package_prints_nothing_and_seeds_nothing():
    code = (
        "import torch, numpy as np; s = torch.random.get_rng_state(); d = torch.get_default_dtype()\n"
        "r = np.random.get_state()[1].copy()\n"
        "import otbook\n"
        "assert torch.equal(s, torch.random.get_rng_state()) and d == torch.get_default_dtype()\n"
        "assert (r == np.random.get_state()[1]).all()\n"
        "import sys; assert 'matplotlib' not in sys.modules and 'sklearn' not in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == run.stderr == ""


def test_every_public_name_has_a_documented_example():
    missing = [
        name
        for name in otbook.__all__
        if callable(getattr(otbook, name))
        and not issubclass(type(getattr(otbook, name)), type)
        and ">>>" not in (getattr(otbook, name).__doc__ or "")
    ]
    assert not missing


def addresses(root):
    """Every address of a repository called otbook in a tracked file, with the file."""
    return [
        (found, str(path.relative_to(root)))
        for path in repository.text_files(root)
        if path.name not in {"test_project.py", "repository.py"}
        for found in ANY_ADDRESS.findall(path.read_text(encoding="utf-8"))
    ]


@pytest.fixture
def clone(tmp_path):
    return checkout.copy(tmp_path / "clone")


def test_no_second_address():
    slug = repository.address()[1]
    others = [(found, path) for found, path in addresses(ROOT) if found != slug]
    assert not others, f"these differ from _config.yml's {slug}; run `make repository URL=…`: {others}"


def test_a_second_address_is_found(clone):
    page = clone / "README.md"
    page.write_text(page.read_text(encoding="utf-8") + "\nhttps://github.com/someone/otbook-fork\n", "utf-8")
    assert ("someone/otbook-fork", "README.md") in addresses(clone)


def test_stamping_leaves_no_old_address_and_valid_notebooks(clone):
    before = dict.fromkeys(path for _, path in addresses(clone))
    changed = repository.stamp("https://github.com/some-one/otbook.git", clone)
    assert {str(p.relative_to(clone)) for p in changed} >= before.keys()
    assert {found for found, _ in addresses(clone)} == {"some-one/otbook"}
    assert repository.address(clone) == ("https://github.com/some-one/otbook", "some-one/otbook")
    bootstrap = 0
    for path in sorted((clone / "book").rglob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        assert [c.id for c in notebook.cells] == notebooks.cell_ids(notebook)
        bootstrap += any("git+https://github.com/some-one/otbook" in c.source for c in notebook.cells)
    assert bootstrap == len(list((clone / "book").rglob("*.ipynb")))
    assert repository.stamp("https://github.com/some-one/otbook", clone) == []


@pytest.mark.parametrize("url", ["github.com/a/b", "https://github.com/a", "https://example.org/a/b"])
def test_only_an_address_is_stamped(url, clone):
    with pytest.raises(SystemExit, match="URL must look like"):
        repository.stamp(url, clone)


def test_workflows_call_the_commands_that_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    files = [
        *(ROOT / ".github/workflows").glob("*.yml"),
        ROOT / ".ci/run",
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
    ]
    command = re.compile(r"(?:^\s*|[`&;] ?|run: |/cpu )make ([a-z-]+)\b", re.MULTILINE)
    called = {m for f in files for m in command.findall(f.read_text(encoding="utf-8"))}
    assert {"book", "test", "lint"} <= called
    assert called <= targets
