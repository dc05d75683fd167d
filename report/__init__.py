"""What a run leaves behind: its history, its picture, and `report.html`."""
