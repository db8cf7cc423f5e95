"""The command ``t5x-llm`` for an environment whose scripts are not on the path."""

from t5x_llm.cli.main import main

if __name__ == "__main__":
    main()
