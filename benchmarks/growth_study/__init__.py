"""Does growth pay? Arms, their runs, and what is made of the rows that they leave."""
