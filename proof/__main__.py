"""`python -m proof`."""

from proof.run import main

if __name__ == "__main__":
    raise SystemExit(main())
