"""Installs `vlm_plugin`, the drop-in loss, its tools and the packaged files of the synthetic birds."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "vlm_plugin/__init__.py").read_text(encoding="utf-8")).group(1)

BASELINES = ("attngan", "dfgan")
# In the repository these lie beside the package, in the wheel within it.
ELSEWHERE = {"vlm_plugin.patches": "patches"} | {f"vlm_plugin.baselines.{n}": f"baselines/{n}" for n in BASELINES}


class WithoutScripts(build_py):
    """Leaves each main.py to the checkout, for which it sets the import path: `vlm-plugin train` does the same."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [
            module for module in found if module[:2] not in [(f"vlm_plugin.baselines.{n}", "main") for n in BASELINES]
        ]


TRAIN = ["pyyaml", "matplotlib", "torchmetrics>=1.4", "jinja2"]
EVAL = ["pyyaml", "torchmetrics>=1.4", "torch-fidelity", "jinja2"]

setup(
    name="vlm-plugin",
    version=VERSION,
    description="A drop-in loss that makes text-to-image GANs draw what the caption says",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=[*find_packages(str(HERE), include=["vlm_plugin", "vlm_plugin.*"]), *ELSEWHERE],
    package_dir=ELSEWHERE,
    cmdclass={"build_py": WithoutScripts},
    package_data={
        "vlm_plugin": ["assets/*", "report/templates/*"],
        "vlm_plugin.patches": ["*.patch"],
        **{f"vlm_plugin.baselines.{name}": ["cfg/*.yml", "assets/*"] for name in BASELINES},
    },
    install_requires=["torch>=2.4", "torchvision", "numpy", "pillow>=10.1", "nltk", "easydict", "tqdm", "regex"],
    extras_require={
        "train": TRAIN,
        "eval": EVAL,
        "dev": [*TRAIN, *EVAL, "pytest", "pytest-xdist", "hypothesis", "scipy", "pandas", "ruff", "setuptools>=70.1"],
    },
    entry_points={"console_scripts": ["vlm-plugin = vlm_plugin.cli.main:main"]},
)
