"""Installs `vlm_plugin`, the drop-in loss, its tools and the packaged files of the synthetic birds."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "vlm_plugin/__init__.py").read_text(encoding="utf-8")).group(1)

# The commands' progress bars, tqdm, come with nltk.
TRAIN = ["pyyaml", "tqdm", "matplotlib", "torchmetrics>=1.4"]
EVAL = ["pyyaml", "torchmetrics>=1.4", "torch-fidelity"]

setup(
    name="vlm-plugin",
    version=VERSION,
    description="A drop-in loss that makes text-to-image GANs draw what the caption says",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=[*find_packages(include=["vlm_plugin", "vlm_plugin.*"]), "vlm_plugin.patches"],
    package_dir={"vlm_plugin.patches": "patches"},
    package_data={"vlm_plugin": ["assets/*"], "vlm_plugin.patches": ["*.patch"]},
    install_requires=["torch>=2.4", "torchvision", "numpy", "pillow>=10.1", "nltk", "easydict"],
    extras_require={
        "train": TRAIN,
        "eval": EVAL,
        "dev": [*TRAIN, *EVAL, "pytest", "ruff", "setuptools>=70.1"],
    },
    entry_points={"console_scripts": ["vlm-plugin = vlm_plugin.tools.cli:main"]},
)
