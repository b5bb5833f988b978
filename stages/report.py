"""report"""
from pipeline.run import RunConfig
from pipeline.world import World
def main(config: RunConfig, world: World, round_index: int | None = None) -> None:
    pass
