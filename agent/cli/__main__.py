"""`python3 -m agent.cli`: the same as `seh-agent`, for units, which start no script."""

from agent.cli.main import main

main()
