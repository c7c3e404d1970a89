"""The native parts of denseshim; everything else is in pyproject.toml.

DENSESHIM_SANITIZE=1 builds them with AddressSanitizer and UndefinedBehaviorSanitizer.
"""

import json
import os
import shlex
import subprocess
import sys
import sysconfig
from typing import ClassVar

from Cython.Build import cythonize
from setuptools import Command, Extension, setup

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


class BuildLauncher(Command):
    """Compiles the launcher where scripts are prepared; from then on it is one of them.

    So each way to install, also an editable one, puts it into the environment's bin.
    """

    user_options: ClassVar = [("build-dir=", "d", "directory to compile into")]

    def initialize_options(self):
        self.build_dir = None

    def finalize_options(self):
        self.set_undefined_options("build", ("build_scripts", "build_dir"))

    def get_source_files(self):
        return self.distribution.scripts

    def run(self):
        self.mkpath(self.build_dir)
        self._compile(os.path.join(self.build_dir, "containerd-shim-dense-v2"))

    def _compile(self, target):
        """Without shared libraries where libc allows that: it is a fifth faster then."""
        compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC"))
        facts = {"VERSION": self.distribution.get_version(), "PYTHON": sys.executable}
        command = [
            *compiler,
            *["-std=c11", "-Wall", "-Wextra", "-Werror"],
            *[f"-D{name}={json.dumps(value)}" for name, value in facts.items()],
            *["-o", target, *self.distribution.scripts],
        ]
        if sanitize:
            subprocess.run([*command, *SANITIZERS], check=True)
        elif subprocess.run([*command, "-O2", "-s", "-static"]).returncode != 0:
            subprocess.run([*command, "-O2", "-s"], check=True)


setup(
    cmdclass={"build_scripts": BuildLauncher},
    scripts=[f"{NATIVE}/launcher.c"],
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
