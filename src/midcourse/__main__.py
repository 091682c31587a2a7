"""python -m midcourse, which torchrun and accelerate launch take as a module."""

from midcourse.cli import main

if __name__ == "__main__":
    main()
