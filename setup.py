"""For `python setup.py develop`, as BasicSR's users know it; everything is said in pyproject.toml."""

import setuptools

if int(setuptools.__version__.split(".")[0]) < 77:
    raise SystemExit(
        f"error: setuptools {setuptools.__version__} cannot read pyproject.toml, 77 or later can; first run"
        " `pip install -r requirements.txt`, or use `bash install.sh`, which does everything"
    )
setuptools.setup()
