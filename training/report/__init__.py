"""`report.html`: what a run did, on one page that needs no network and no script."""
