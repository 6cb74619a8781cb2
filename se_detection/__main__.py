"""`python -m se_detection COMMAND`: the same as `se-det COMMAND`."""

from se_detection_cli.main import main

main()
