"""The door for every kind of training: ``python train.py --gin_file=configs/recipes/...gin``."""

from t5x_llm.cli.train import main

if __name__ == "__main__":
    main()
