"""Where the commands begin. Nothing that takes time is imported before Ctrl-C is seen to."""

from pxed.interrupt import heard, quiet


def pxed() -> None:
    """Entry point of ``pxed``; each command hears SIGINT again by itself."""
    quiet()
    from pxed.cli import main

    main()


def aoe_fast() -> None:
    """Entry point of ``aoe-fast``; not in its own package, which loads the data path first."""
    quiet()
    from aoe_fast.cli import main

    heard()
    main()
