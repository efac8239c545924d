"""`python -m purify_audit` is the `purify-audit` command."""

from purify_audit.cli import main

if __name__ == "__main__":
    main()
