"""``python -m bench SUB ...``: each module of this package that has a ``main(argv)`` is one SUB."""

import ast
import importlib
import sys
from pathlib import Path


def subcommands() -> dict[str, str]:
    """Name -> the first line of what it says about itself; nothing is imported for it."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        tree = ast.parse(path.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def main() -> int:
    """Hand the arguments to the subcommand named; exit status 2 if there is none."""
    known = subcommands()
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        print("usage: python -m bench SUB [--help]", file=sys.stderr)
        for name, summary in known.items():
            print(f"  {name:14} {summary}", file=sys.stderr)
        return 2
    sub = sys.argv[1]
    entry = importlib.import_module(f"bench.{sub}").main
    sys.argv[0] = f"bench {sub}"
    status = entry(sys.argv[2:])
    return int(status or 0)


if __name__ == "__main__":
    sys.exit(main())
