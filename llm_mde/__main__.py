"""`python -m llm_mde` and `deepspeed --module llm_mde`: the same as the command `llm-mde`."""

from llm_mde.cli import run

if __name__ == "__main__":
    run()
