"""Where replies come from: one module for each kind of model server, all held to one contract."""
