"""Builds the Cython extension modules of aoe_fast; everything else is in pyproject.toml.

PXED_CYTHON_ANNOTATE=1 also writes Cython's annotated HTML beside the sources.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Werror",
    # What Cython itself generates and cannot help:
    "-Wno-unused-function",
    "-Wno-unused-parameter",
    "-Wno-missing-field-initializers",
    "-Wno-cast-function-type",
]

extensions = [
    Extension(
        f"aoe_fast.{path.stem}",
        [str(path)],
        extra_compile_args=["-O2", "-g", "-fno-strict-aliasing", *WARNINGS],
        define_macros=[("_GNU_SOURCE", "1")],
    )
    for path in sorted(Path("aoe_fast").glob("*.pyx"))
]

setup(
    ext_modules=cythonize(
        extensions,
        annotate=bool(os.environ.get("PXED_CYTHON_ANNOTATE")),
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
        },
    )
)
