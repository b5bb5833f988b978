"""Hash the shards of every finished round and compare them with the manifests."""

from pipeline.data.parts import ShardError
from pipeline.data.shards import find_damage, is_packed, read_manifest
from pipeline.session import Session


def main(session: Session, round_index: int | None = None) -> None:
    """Raise ShardError with one line for each shard that is missing, truncated or altered."""
    config = session.config
    if not session.context.is_main_process:
        return
    all_folders = config.image_folders(config.num_rounds - 1)
    chosen = all_folders if round_index is None or config.distill.shards else [config.round_folder(round_index)]
    folders = [folder for folder in chosen if is_packed(folder)]
    if not folders:
        raise ShardError(f"{chosen[0]} holds no complete dataset; run the stage `synthesize` first")
    problems = [problem for folder in folders for problem in find_damage(folder)]
    if problems:
        raise ShardError("\n  ".join(["shards differ from their manifest:", *problems]))
    for folder in folders:
        manifest = read_manifest(folder)
        num_shards, num_images = len(manifest["shards"]), manifest["num_images"]
        print(f"verify: {folder}, {num_shards} shards with {num_images:,} images match the manifest")
