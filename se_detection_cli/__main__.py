"""`python -m se_detection_cli COMMAND`: the same as `se-det COMMAND`."""

from .main import main

main()
