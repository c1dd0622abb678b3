"""Builds the fuzzer of ``handle``: clang, libFuzzer, AddressSanitizer, UndefinedBehaviorSanitizer.

``python -m tests.fuzz.build [SECONDS | RUNSx]`` builds and runs it: `300` is five minutes, `1e8x`
a hundred million frames. Findings are files in build/fuzz/findings; give a name to run it again.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
WHERE = ROOT / "build" / "fuzz"
SEEDS = HERE / "corpus" / "aoe"
WORDS = HERE / "aoe.dict"

SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
QUIET = ["-Wno-error", "-Wno-unused-command-line-argument", "-Wno-unknown-warning-option",
         "-Wno-unreachable-code"]  # fmt: skip


def compile_modules(where: Path, flags: list[str], link: list[str], cc: str = "clang") -> Path:
    """The compiled modules, made with ``flags``: a directory for PYTHONPATH."""
    # A copy of the sources: Cython's output must not be taken for that of the usual build.
    tree = where / "tree"
    shutil.rmtree(tree, ignore_errors=True)  # and nothing beside it: findings are there
    tree.mkdir(parents=True)
    shutil.copytree(ROOT / "aoe_fast", tree / "aoe_fast",
                    ignore=shutil.ignore_patterns("*.c", "*.so", "__pycache__"))  # fmt: skip
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tree)
    environment = os.environ | {
        "CC": cc, "LDSHARED": " ".join([cc, "-shared", *link]),
        "PXED_CFLAGS": " ".join(flags),
    }  # fmt: skip
    _run([sys.executable, "setup.py", "-q", "build_ext", "--inplace", "-j", "2"],
         cwd=tree, env=environment)  # fmt: skip
    return tree


def build() -> Path:
    """The fuzzer's program; made again when a source has changed."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "aoe_fast").iterdir(), *HERE.iterdir()]):
        if path.suffix in (".pyx", ".pxd", ".h", ".c", ".py") and path.name != "setup.py":
            if path.parent == ROOT / "aoe_fast" and path.suffix == ".c":
                continue  # generated
            digest.update(path.name.encode() + path.read_bytes())
    want, stamp, program = digest.hexdigest(), WHERE / "stamp", WHERE / "fuzzer"
    if stamp.exists() and stamp.read_text() == want:
        return program
    flags = [*SANITIZE, "-fsanitize=fuzzer-no-link", *QUIET]
    tree = compile_modules(WHERE, flags, SANITIZE)
    include = sysconfig.get_path("include")
    _run([sys.executable, "-m", "cython", "-3", "-I", str(tree), str(HERE / "harness.pyx"),
          "-o", str(tree / "harness.c"), "-X", "boundscheck=False"], cwd=tree)  # fmt: skip
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    _run(["clang", "-O2", "-g", "-fPIC", "-shared", "-D_GNU_SOURCE", *flags,
          f"-I{include}", f"-I{tree}/aoe_fast", "harness.c", "-o", f"harness{suffix}"],
         cwd=tree)  # fmt: skip
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    _run(
        [
            "clang",
            "-O2",
            "-g",
            "-fsanitize=fuzzer,address,undefined",
            f"-I{include}",
            str(HERE / "main.c"),
            "-o",
            str(program),
            "-rdynamic",
            f"-l{version}",
        ],
        cwd=tree,
    )
    stamp.write_text(want)
    return program


def environment() -> dict[str, str]:
    """Where the fuzzer's Python finds its modules; Python's own arena would hide errors."""
    site = sysconfig.get_path("purelib")
    return os.environ | {
        "PYTHONPATH": f"{WHERE / 'tree'}:{site}", "PYTHONMALLOC": "malloc",
        # Python keeps what it has to its end; leaks are counted by the modules themselves.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1", "UBSAN_OPTIONS": "print_stacktrace=1",
    }  # fmt: skip


def fuzz(*limits: str) -> "subprocess.CompletedProcess[str]":
    """Run from the seeds; ``limits`` are libFuzzer's options."""
    program = build()
    grown, findings = WHERE / "corpus", WHERE / "findings"
    grown.mkdir(exist_ok=True)
    findings.mkdir(exist_ok=True)
    return subprocess.run(
        [str(program), str(grown), str(SEEDS), f"-artifact_prefix={findings}/", "-max_len=20000",
         f"-dict={WORDS}",
         "-len_control=20", "-timeout=60", "-rss_limit_mb=2048", "-print_final_stats=1", *limits],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip


def _run(argv: list[str], **options: object) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def main(words: list[str]) -> int:
    if words and Path(words[0]).is_file():
        return subprocess.run([str(build()), *words], env=environment(), check=False).returncode
    word = words[0] if words else "300"
    if word.endswith("x"):
        limit = f"-runs={int(float(word[:-1]))}"
    else:
        limit = f"-max_total_time={int(word)}"
    done = fuzz(limit)
    print("\n".join(done.stderr.splitlines()[-40:]))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
