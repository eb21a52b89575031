from adaptive_ray.cli import main

main()
