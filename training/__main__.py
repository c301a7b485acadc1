"""`torchrun --nproc-per-node N -m cegain.training`: `ceg train` in N processes, with the same options."""

from cegain.training.commands.train import train_command

if __name__ == "__main__":
    train_command()
