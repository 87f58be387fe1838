"""Prints the files of a run as a table: python3 scripts/table.py OUT/report.json"""

import json
import sys
from pathlib import Path

report = json.loads(Path(sys.argv[1]).read_text())
rows = [("sample", "records", "residues", "windowed", "output", "bytes")]
for file in report["files"]:
    output = file["output"]
    size = Path(output).stat().st_size if output else 0
    rows.append((file["sample"], file["records"], file["residues"], file["windowed"], output or file["error"], size))
rows = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
for row in rows:
    cells = [cell.ljust(width) if i in (0, 4) else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))]
    print("  ".join(cells).rstrip())
