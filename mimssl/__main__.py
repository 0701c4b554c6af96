"`python -m mimssl`; see nbs/cli.ipynb."
import sys
from mimssl.cli import main

if __name__ == "__main__": sys.exit(main())
