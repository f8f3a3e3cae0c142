"""How much it costs to tell thousands of clients at once."""
