"""``python -m lorax_vlm``."""

from lorax_vlm.cli.main import main

if __name__ == "__main__":
    main()
