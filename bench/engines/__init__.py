"""Where cells run: each engine takes cells and gives events; `find_engine` knows them all."""
