"""Fit, validate and test edits: ``python train.py fit --config configs/lab_gpt2.yaml``."""

from mega_pl.cli import main

if __name__ == "__main__":
    main()
