"""Who plays the clients of a simulation: this process, worker processes, Ray, Flower."""
