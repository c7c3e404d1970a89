"""The native modules of denseshim; everything else is in pyproject.toml.

DENSESHIM_SANITIZE=1 builds them with AddressSanitizer and UndefinedBehaviorSanitizer.
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

NATIVE = "src/_native"
WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-function", "-Wno-unused-parameter"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-O1"]

sanitize = os.environ.get("DENSESHIM_SANITIZE") == "1"
compile_args = WARNINGS + (SANITIZERS if sanitize else ["-O2"])
link_args = SANITIZERS if sanitize else []

keeper = Extension(
    "shim._keeper",
    [f"{NATIVE}/keeper.pyx"],
    depends=[f"{NATIVE}/{name}" for name in sorted(os.listdir(NATIVE)) if name.endswith(".pxd")],
    extra_compile_args=compile_args,
    extra_link_args=link_args,
)

setup(
    ext_modules=cythonize(
        [keeper],
        include_path=[NATIVE],
        language_level=3,
        compiler_directives={
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "legacy_implicit_noexcept": False,
        },
    ),
    cffi_modules=[f"{NATIVE}/sys_build.py:ffibuilder"],
)
