"""What pyproject.toml cannot say.

conf/ lives at the top of the repository and goes into the wheel as sttabt/conf. The kernels for CPUs are built where
there is a C++ compiler; sttabt.native says when they are missing, or of other sources than those that are there. One
build holds several instruction sets.
"""

import runpy
import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    """An editable install reads conf/ where it is (sttabt.cli.composition.config_folder)."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "sttabt" / "conf"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree("conf", target, ignore=shutil.ignore_patterns("__pycache__"))


SOURCES = runpy.run_path("src/sttabt/native/sources.py")["digest"]()

KERNELS = Extension(
    "sttabt.native._cpu",
    ["src/sttabt/native/cpp/kernels.cpp"],
    depends=[
        f"src/sttabt/native/cpp/{part}.inc"
        for part in ("vectors", "attention", "product", "encoder", "columns", "planning", "online")
    ],
    define_macros=[("STTABT_SOURCES", f'"{SOURCES}"')],
    extra_compile_args=["-std=c++17", "-O3", "-fno-math-errno", "-fopenmp", "-fvisibility=hidden", "-Wno-psabi"],
    extra_link_args=["-fopenmp"],
    optional=True,
)

setup(cmdclass={"build_py": BuildWithConf}, ext_modules=[KERNELS])
