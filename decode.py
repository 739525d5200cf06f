"""Fun-ASR's name for tools/decode.py: python decode.py ++model_dir=DIR ++scp_file=wav.scp ++output_file=hyp.txt"""

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).resolve().parent / "tools" / "decode.py"), run_name="__main__")
