"""One package, two ways in: `colcon build` in a ROS 2 workspace, `pip install .` anywhere.

Everything is declared here and not in pyproject.toml, because ROS 2 Humble's setuptools (59) reads only this.
"""

from glob import glob
from pathlib import Path
from xml.etree import ElementTree

import setuptools
from setuptools import find_packages, setup

NAME = "fadepth_ros"
VERSION = ElementTree.parse(Path(__file__).with_name("package.xml")).findtext("version")  # ROS tools read it there
RUFF = "ruff==0.17.6"  # the version of .pre-commit-config.yaml, as codespell's
ROS = ["ros-jazzy-rclpy[fastrtps]==7.1.6", "ros-jazzy-common-interfaces==5.3.6"]  # PyPI wheels of ROS 2, x86-64 Linux
CPU = ["openvino>=2024.4"]  # runs the network without torch
VIEW = ["viser>=1.0"]  # the demo's page
FOXGLOVE = ["foxglove-sdk>=0.30"]  # the demo in Foxglove, and MCAP of what it shows
GPU = ["torch>=2.6"]
TENSORRT = ["torch-tensorrt>=2.11"]  # or torch-tensorrt-rtx, for GeForce RTX cards; brings its own torch
TRAIN = [
    "torch>=2.6",
    "lightning-fabric>=2.5",  # devices, precision, processes
    "timm>=1.0.26",  # backbones; up to 1.0.25 it unpickles files of weights without weights_only, which can run code
    "pydantic>=2.7",  # configuration
    "pyyaml>=6",
    "tensorboard>=2.16",
    "tqdm>=4.66",
    "onnx>=1.16",  # export for robots without torch
    "numba>=0.60",  # renders the synthetic scenes
]
ADAPT = [  # with TRAIN: teaches a network from a recording
    "rosbags>=0.10",  # reads recordings: mcap, sqlite3, ROS 1; brings lz4 and Zstandard
    "pycolmap>=4.0",  # camera motion from the pictures alone
    "jinja2>=3",  # the page that compares before and after
]
QUANTIZE = ["nncf>=3.0", "onnxruntime>=1.20", "onnx>=1.16"]  # makes int8 graphs
CLUSTER = ["ray>=2.30"]  # commands over many recordings, on several machines
ODOMETRY = ["evo>=1.31"]  # compares trajectories; GPL-3.0, so nothing else may need it
ASSETS = ["trimesh>=4.5", "pycollada>=0.8", "pillow>=10", "scipy>=1.11"]  # scenes made of 3D models
DEV = [
    "pytest>=8,<9",  # Jazzy's launch_testing breaks under pytest 9
    "pytest-xdist>=3.6",
    RUFF,
    "codespell[toml]==2.4.3",
    "mypy==2.4.1",
]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.27", RUFF]  # `make docs`
# What older versions of colcon read in place of the extra `test`. setuptools 72 has removed the option.
TESTS_REQUIRE = {"tests_require": ["pytest"]} if int(setuptools.__version__.split(".")[0]) < 72 else {}

setup(
    name=NAME,
    version=VERSION,
    description="Fast self-supervised monocular depth for ROS 2",
    license="Apache-2.0",
    packages=find_packages(include=["fadepth_core*", "fadepth_ros*"]),
    package_data={
        "fadepth_core": ["py.typed", "adaptation/*.html", "assets/*", "data/splits/*.gz"],
        "fadepth_ros": ["py.typed"],
    },
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", glob("launch/*.launch.py")),
        (f"share/{NAME}/config", glob("config/*.*")),
        (f"share/{NAME}/config/recipes", glob("config/recipes/*.*")),
        (f"share/{NAME}/config/training", glob("config/training/*.yaml")),
        (f"share/{NAME}/config/training/shipped", glob("config/training/shipped/*.yaml")),
        (f"share/{NAME}/config/training/tables", glob("config/training/tables/*.yaml")),
    ],
    python_requires=">=3.10",
    install_requires=["numpy>=1.21", "opencv-python-headless>=4.5", "safetensors>=0.4"],
    extras_require={
        "ros": ROS,
        "cpu": CPU,
        "gpu": GPU,
        "tensorrt": TENSORRT,
        "train": TRAIN,
        "adapt": ADAPT,
        "quantize": QUANTIZE,
        "view": VIEW,
        "foxglove": FOXGLOVE,
        "cluster": CLUSTER,
        "odometry": ODOMETRY,
        "assets": ASSETS,
        "dev": DEV,
        "test": ["pytest"],  # tells `colcon test` to run pytest
        "docs": DOCS,
    },
    **TESTS_REQUIRE,
    zip_safe=False,
    entry_points={
        "console_scripts": [
            "fadepth = fadepth_core.__main__:main",
            "depth_node = fadepth_ros.process:depth_node",
            "clip_publisher = fadepth_ros.process:clip_publisher",
            "viewer = fadepth_ros.process:viewer",
            "fadepth_demo = fadepth_ros.demo:main",
        ]
    },
)
