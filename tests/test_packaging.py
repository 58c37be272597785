from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [ROOT / "install.sh", ROOT / ".ci/run", *sorted((ROOT / "scripts").glob("*.sh"))]


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_names(lines: list[str]) -> set[str]:
    bare = [line.split("#")[0].strip() for line in lines]
    return {normalised(re.split(r"[\s<>=!~;\[]", line)[0]) for line in bare if line and not line.startswith("-")}


def declared(section: str) -> set[str]:
    """Names in pyproject.toml's list `section`; read as text, for Python 3.10 has no TOML reader."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    block = re.search(rf"^{section} = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert block is not None, section
    return requirement_names(re.findall(r'^\s*"([^"]+)"', block[1], re.MULTILINE))


def pins() -> list[tuple[str, str]]:
    """Name and marker of each pin, e.g. ('numpy', 'python_version < "3.11"')."""
    found = []
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([\w.-]+)==[\w.]+(?:; (.+))?", line)
            assert match is not None, f"no exact pin: {line}"
            found.append((normalised(match[1]), match[2] or ""))
    return found


@pytest.mark.parametrize("section", ["dependencies", "export", "video", "test", "dev"])
def test_every_direct_dependency_is_pinned(section: str) -> None:
    names = declared(section) - {"mcadkd"}
    assert names
    assert names - {name for name, _ in pins()} == set()


def test_each_pin_holds_for_every_python_exactly_once() -> None:
    markers: dict[str, list[str]] = {}
    for name, marker in pins():
        markers.setdefault(name, []).append(marker)
    newer, older = 'python_version >= "3.11"', 'python_version < "3.11"'
    whole = [[""], [newer, older], [older], [newer]]  # some are brought along by one side's packages alone
    assert {name: given for name, given in markers.items() if given not in whole} == {}


def test_requirements_name_what_the_package_depends_on() -> None:
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    assert requirement_names(lines) == declared("dependencies")
    assert "--constraint constraints.txt" in lines


def test_torch_and_torchvision_are_the_tested_pair() -> None:
    text = (ROOT / "constraints.txt").read_text("utf-8")
    assert "\ntorch==2.13.0\n" in text
    assert "\ntorchvision==0.28.0\n" in text


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_script_parses(script: Path) -> None:
    result = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_install_stops_where_basicsr_itself_is_installed(tmp_path: Path) -> None:
    environment = tmp_path / "an environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    information = site / "basicsr-1.4.2.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: basicsr\nVersion: 1.4.2\n")
    result = subprocess.run(
        ["bash", str(ROOT / "install.sh")],
        env={"PATH": "/usr/bin:/bin", "VIRTUAL_ENV": str(environment)},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "basicsr 1.4.2 is installed" in result.stderr
    assert "pip uninstall basicsr" in result.stderr


def test_install_refuses_an_extra_that_is_none_before_it_installs_anything(tmp_path: Path) -> None:
    command = ["bash", str(ROOT / "install.sh"), "test,exports"]
    result = subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    offered = re.findall(r"^(\w+) = ", section, re.MULTILINE)
    assert {"docs", "export", "video"} <= set(offered)
    assert result.stderr == (
        f"error: there is no extra 'exports'; give one of {', '.join(offered)}, or several with commas between\n"
    )


@pytest.mark.parametrize(
    "module",
    ["basicsr", "basicsr.losses", "basicsr.metrics", "basicsr.utils.registry", "basicsr.utils.errors"],
)
def test_importing_a_package_imports_nothing_heavy(module: str) -> None:
    heavy = ["torch", "torchvision", "numpy", "cv2", "pydantic", "skimage", "lmdb", "tensorboard"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_version_is_read_without_importing_the_package() -> None:
    """setuptools reads `basicsr.__version__` from the syntax tree, which takes a literal."""
    text = (ROOT / "basicsr/__init__.py").read_text("utf-8")
    assert re.search(r'^__version__ = "\d+\.\d+\.\d+"$', text, re.MULTILINE)


def test_the_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text("utf-8")


@pytest.mark.parametrize(
    "folder", ["archs", "data", "losses", "distill", "models", "metrics", "engine", "utils"], ids=str
)
def test_each_folder_of_the_layout_is_a_package(folder: str) -> None:
    assert (ROOT / "basicsr" / folder / "__init__.py").is_file()
