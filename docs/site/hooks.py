"""Lays out the site as the repository is, so that links between its pages work in both."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *("options/README.md", "datasets/README.md", "experiments/README.md"),
)
LINKED = ("LICENSE", "scripts/slurm/train.sbatch", "docs/recipes/dat_light_x4.csv")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Puts pages of docs/ below docs/, beside those that lie elsewhere in the repository."""
    pages = [file for file in files if file.src_uri.endswith(".md")]
    for page in pages:
        files.remove(page)
        files.append(_file(config, f"docs/{page.src_uri}"))
    for name in (*PAGES, *LINKED):
        files.append(_file(config, name))
    return files


def _file(config: MkDocsConfig, name: str) -> File:
    return File.generated(config, name, abs_src_path=str(ROOT / name))
