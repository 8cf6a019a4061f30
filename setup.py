"""All metadata of the package: `pip install -e .` and the extras `pip install -e '.[gpu,onnx]'`.

`make lowest` tests the lower bounds. They include the releases of the last 18 months.
requirements.lock has a complete set of versions that were tested together.
"""

import os
import pathlib
import re
import shutil

import setuptools
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).resolve().parent
VERSION = re.search(
    r'__version__ = "(.+)"', (HERE / "deeplab_keras/version.py").read_text(encoding="utf-8")
)[1]

# DEEPLAB_KERAS_TENSORFLOW=tensorflow-cpu selects the build without GPU libraries, which is 220 MB
# smaller. The Makefile sets it on machines without a GPU. This is a variable instead of an extra
# because an extra can only add requirements.
TENSORFLOW = os.environ.get("DEEPLAB_KERAS_TENSORFLOW", "tensorflow")

EXTRAS = {
    "gpu": ["tensorflow[and-cuda]>=2.20,<3"],
    "onnx": ["onnxruntime>=1.22", "tf2onnx>=1.17"],
    "serve": ["ai-edge-litert>=1.4"],  # runs .tflite files without TensorFlow
    "viz": ["matplotlib>=3.10,<4"],
    "annotations": ["pycocotools>=2.0.11"],  # draws polygons of labeling tools
    "video": ["imageio>=2.37", "imageio-ffmpeg>=0.6"],
    "test": [
        "dill>=0.4",
        "hypothesis>=6.170",
        "matplotlib>=3.10,<4",
        "pycocotools>=2.0.11",
        "pytest>=9.2",
        "pytest-xdist>=3.8",
    ],
}
# The documentation as a site, `make site`.
EXTRAS["docs"] = ["mkdocs>=1.6,<2", "mkdocs-material>=9.8,<10", "mkdocstrings[python]>=1.0,<2"]
EXTRAS["dev"] = [*EXTRAS["test"], *EXTRAS["serve"], "mypy>=2.4", "ruff>=0.17"]


class BuildWithResources(build_py):
    """Copies the folders of deeplab_keras/io/resources.py into the package.

    An editable installation reads them from the checkout.
    """

    def run(self) -> None:
        """Builds the package."""
        super().run()
        if self.editable_mode:
            return
        target = pathlib.Path(self.build_lib) / "deeplab_keras" / "resources"
        shutil.rmtree(target, ignore_errors=True)  # of an earlier build
        for name in ("configs", "demo/web"):
            shutil.copytree(
                HERE / name, target / name, ignore=shutil.ignore_patterns(".*", "README.md")
            )
        (target / "docs").mkdir()
        for page in (HERE / "docs").glob("*.md"):  # messages name these pages
            shutil.copy(page, target / "docs")


setuptools.setup(
    name="deeplab-keras",
    version=VERSION,
    description="Mobile semantic segmentation in Keras 3: DeepLab, PSPNet, FCN and LR-ASPP on "
    "MobileNetV2 and MobileNetV3",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="semantic segmentation, DeepLab, MobileNet, Keras, TensorFlow, TFLite",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        # What is tested. Other systems and newer versions of Python are expected to work.
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    packages=setuptools.find_packages(include=["deeplab_keras", "deeplab_keras.*"]),
    cmdclass={"build_py": BuildWithResources},
    entry_points={"console_scripts": ["deeplab-keras=deeplab_keras.cli.main:main"]},
    package_data={
        "deeplab_keras": ["py.typed", "visualization/templates/*.html", "zoo/bundled/*/*"]
    },
    python_requires=">=3.11",
    install_requires=[
        f"{TENSORFLOW}>=2.20,<3",
        "absl-py>=2.1",
        "filelock>=3.30",  # has lock_descriptor
        "flatbuffers>=25.2.10",
        "h5py>=3.12.1",
        # tensorflow-datasets imports this package, but does not require it on Python 3.9+
        "importlib-resources>=6",
        "jinja2>=3.1.6",
        "keras>=3.11,<4",
        "keras-cv>=0.9,<0.10",
        "numpy>=2.0,<3",
        "pillow>=11",
        "tensorboard>=2.20,<3",
        "tensorflow-datasets>=4.9.10,<5",  # the first one that works with protobuf 7
    ],
    extras_require=EXTRAS,
)
