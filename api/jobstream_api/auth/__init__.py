"""Who is asking, and may they: keys, tokens, tickets, and the rule of each route."""
