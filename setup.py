"""Builds the Cython extension modules of aoe_fast; everything else is in pyproject.toml.

PXED_CYTHON_ANNOTATE=1 also writes Cython's annotated HTML beside the sources. PXED_FAULTS=1 builds
only the modules that have faults to inject (faults.h), for build_ext --build-lib somewhere else.
PXED_CFLAGS is added to the compiler's options (sanitizers).
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

FAULTS = bool(os.environ.get("PXED_FAULTS"))
MACROS: list[tuple[str, str | None]] = [("_GNU_SOURCE", "1")]
if FAULTS:
    MACROS.append(("PXED_FAULTS", "1"))

extensions = [
    Extension(
        f"aoe_fast.{path.stem}",
        [str(path)],
        extra_compile_args=[
            "-O2",
            "-g",
            "-fno-strict-aliasing",
            *WARNINGS,
            *os.environ.get("PXED_CFLAGS", "").split(),
        ],
        define_macros=MACROS,
    )
    for path in sorted(Path("aoe_fast").glob("*.pyx"))
    if not FAULTS or "faults.h" in path.read_text()
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
