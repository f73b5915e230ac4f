"""HTTP: the route map, who may come in, and how answers and streams leave."""
