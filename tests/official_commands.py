"""Command lines from the documents of the official DeepLab (research/deeplab), and its flags.

Written from the official sources (train.py, eval.py, vis.py, export_model.py, common.py, g3doc/*.md
and local_test_mobilenetv2.sh), not from this project's code.
"""

from __future__ import annotations

import shlex

# local_test_mobilenetv2.sh
LOCAL_TEST_MOBILENETV2 = r"""
python "${WORK_DIR}"/train.py \
  --logtostderr \
  --train_split="trainval" \
  --model_variant="mobilenet_v2" \
  --output_stride=16 \
  --train_crop_size=513 \
  --train_crop_size=513 \
  --train_batch_size=4 \
  --training_number_of_steps="${NUM_ITERATIONS}" \
  --fine_tune_batch_norm=true \
  --tf_initial_checkpoint="${INIT_FOLDER}/${CKPT_NAME}/model.ckpt-30000" \
  --train_logdir="${TRAIN_LOGDIR}" \
  --dataset_dir="${PASCAL_DATASET}"
python "${WORK_DIR}"/eval.py \
  --logtostderr \
  --eval_split="val" \
  --model_variant="mobilenet_v2" \
  --eval_crop_size=513 \
  --eval_crop_size=513 \
  --checkpoint_dir="${TRAIN_LOGDIR}" \
  --eval_logdir="${EVAL_LOGDIR}" \
  --dataset_dir="${PASCAL_DATASET}" \
  --max_number_of_evaluations=1
python "${WORK_DIR}"/vis.py \
  --logtostderr \
  --vis_split="val" \
  --model_variant="mobilenet_v2" \
  --vis_crop_size=513 \
  --vis_crop_size=513 \
  --checkpoint_dir="${TRAIN_LOGDIR}" \
  --vis_logdir="${VIS_LOGDIR}" \
  --dataset_dir="${PASCAL_DATASET}" \
  --max_number_of_iterations=1
python "${WORK_DIR}"/export_model.py \
  --logtostderr \
  --checkpoint_path="${CKPT_PATH}" \
  --export_path="${EXPORT_PATH}" \
  --model_variant="mobilenet_v2" \
  --num_classes=21 \
  --crop_size=513 \
  --crop_size=513 \
  --inference_scales=1.0
"""

# g3doc/cityscapes.md
CITYSCAPES = r"""
python deeplab/train.py \
    --logtostderr \
    --training_number_of_steps=90000 \
    --train_split="train_fine" \
    --model_variant="xception_65" \
    --atrous_rates=6 \
    --atrous_rates=12 \
    --atrous_rates=18 \
    --output_stride=16 \
    --decoder_output_stride=4 \
    --train_crop_size="769,769" \
    --train_batch_size=1 \
    --dataset="cityscapes" \
    --tf_initial_checkpoint=${PATH_TO_INITIAL_CHECKPOINT} \
    --train_logdir=${PATH_TO_TRAIN_DIR} \
    --dataset_dir=${PATH_TO_DATASET}
python deeplab/eval.py \
    --logtostderr \
    --eval_split="val_fine" \
    --model_variant="xception_65" \
    --atrous_rates=6 \
    --atrous_rates=12 \
    --atrous_rates=18 \
    --output_stride=16 \
    --decoder_output_stride=4 \
    --eval_crop_size="1025,2049" \
    --dataset="cityscapes" \
    --checkpoint_dir=${PATH_TO_CHECKPOINT} \
    --eval_logdir=${PATH_TO_EVAL_DIR} \
    --dataset_dir=${PATH_TO_DATASET}
python deeplab/vis.py \
    --logtostderr \
    --vis_split="val_fine" \
    --model_variant="xception_65" \
    --atrous_rates=6 \
    --atrous_rates=12 \
    --atrous_rates=18 \
    --output_stride=16 \
    --decoder_output_stride=4 \
    --vis_crop_size="1025,2049" \
    --dataset="cityscapes" \
    --colormap_type="cityscapes" \
    --checkpoint_dir=${PATH_TO_CHECKPOINT} \
    --vis_logdir=${PATH_TO_VIS_DIR} \
    --dataset_dir=${PATH_TO_DATASET}
"""
# The architecture in CITYSCAPES, and g3doc/model_zoo.md's "additional commandline flags" for
# MobileNetV3, which replace it.
XCEPTION = (
    "--model_variant=xception_65",
    "--atrous_rates=6",
    "--atrous_rates=12",
    "--atrous_rates=18",
    "--output_stride=16",
    "--decoder_output_stride=4",
)
MOBILENET_V3 = (
    "--model_variant=mobilenet_v3_small_seg",
    "--image_pooling_crop_size=769,769",
    "--image_pooling_stride=4,5",
    "--add_image_level_feature=1",
    "--aspp_convs_filters=128",
    "--aspp_with_concat_projection=0",
    "--aspp_with_squeeze_and_excitation=1",
    "--decoder_use_sum_merge=1",
    "--decoder_filters=19",
    "--decoder_output_is_logits=1",
    "--image_se_uses_qsigmoid=1",
    "--decoder_output_stride=8",
    "--output_stride=32",
)

# g3doc/ade20k.md, and g3doc/export_model.md, which says to add the model flags and crop_size
ADE20K = r"""
python deeplab/train.py \
    --logtostderr \
    --training_number_of_steps=150000 \
    --train_split="train" \
    --model_variant="xception_65" \
    --atrous_rates=6 \
    --atrous_rates=12 \
    --atrous_rates=18 \
    --output_stride=16 \
    --decoder_output_stride=4 \
    --train_crop_size="513,513" \
    --train_batch_size=4 \
    --min_resize_value=513 \
    --max_resize_value=513 \
    --resize_factor=16 \
    --dataset="ade20k" \
    --tf_initial_checkpoint=${PATH_TO_INITIAL_CHECKPOINT} \
    --train_logdir=${PATH_TO_TRAIN_DIR} \
    --dataset_dir=${PATH_TO_DATASET}
python deeplab/export_model.py \
    --checkpoint_path=${CHECKPOINT_PATH} \
    --export_path=${OUTPUT_DIR}/frozen_inference_graph.pb
"""

# g3doc/pascal.md, with its mistake in the name of the initial checkpoint's flag
PASCAL = r"""
python deeplab/train.py \
    --logtostderr \
    --train_split="train" \
    --model_variant="xception_65" \
    --atrous_rates=6 \
    --atrous_rates=12 \
    --atrous_rates=18 \
    --output_stride=16 \
    --decoder_output_stride=4 \
    --train_crop_size=513 \
    --train_crop_size=513 \
    --train_batch_size=1 \
    --tf_initial_checkpoints=${PATH_TO_INITIAL_CHECKPOINT} \
    --train_logdir=${PATH_TO_TRAIN_DIR} \
    --dataset_dir=${PATH_TO_DATASET}
"""

# g3doc/quantize.md
QUANTIZE = r"""
python deeplab/train.py \
    --logtostderr \
    --training_number_of_steps=3000 \
    --train_split="train" \
    --model_variant="mobilenet_v2" \
    --output_stride=16 \
    --train_crop_size="513,513" \
    --train_batch_size=8 \
    --base_learning_rate=3e-5 \
    --dataset="pascal_voc_seg" \
    --quantize_delay_step=0 \
    --tf_initial_checkpoint=${PATH_TO_TRAINED_FLOAT_MODEL} \
    --train_logdir=${PATH_TO_TRAIN_DIR} \
    --dataset_dir=${PATH_TO_DATASET}
"""

# Flag -> default value; `None` if it has none.
COMMON = {
    "min_resize_value": None,
    "max_resize_value": None,
    "resize_factor": None,
    "keep_aspect_ratio": "true",
    "logits_kernel_size": "1",
    "model_variant": "mobilenet_v2",
    "image_pyramid": None,
    "add_image_level_feature": "true",
    "image_pooling_crop_size": None,
    "image_pooling_stride": "1,1",
    "aspp_with_batch_norm": "true",
    "aspp_with_separable_conv": "true",
    "multi_grid": None,
    "depth_multiplier": "1.0",
    "divisible_by": None,
    "decoder_output_stride": None,
    "decoder_use_separable_conv": "true",
    "merge_method": "max",
    "prediction_with_upsampled_logits": "true",
    "dense_prediction_cell_json": "",
    "nas_stem_output_num_conv_filters": "20",
    "nas_use_classification_head": "false",
    "nas_remove_os32_stride": "false",
    "use_bounded_activation": "false",
    "aspp_with_concat_projection": "true",
    "aspp_with_squeeze_and_excitation": "false",
    "aspp_convs_filters": "256",
    "decoder_use_sum_merge": "false",
    "decoder_filters": "256",
    "decoder_output_is_logits": "false",
    "image_se_uses_qsigmoid": "false",
    "label_weights": None,
    "batch_norm_decay": "0.9997",
    # absl's flags of logging
    "logtostderr": "false",
    "alsologtostderr": "false",
}
TRAIN = COMMON | {
    "num_clones": "1",
    "clone_on_cpu": "false",
    "num_replicas": "1",
    "startup_delay_steps": "15",
    "num_ps_tasks": "0",
    "master": "",
    "task": "0",
    "train_logdir": None,
    "log_steps": "10",
    "save_interval_secs": "1200",
    "save_summaries_secs": "600",
    "save_summaries_images": "false",
    "profile_logdir": None,
    "optimizer": "momentum",
    "learning_policy": "poly",
    "base_learning_rate": ".0001",
    "decay_steps": "0.0",
    "end_learning_rate": "0.0",
    "learning_rate_decay_factor": "0.1",
    "learning_rate_decay_step": "2000",
    "learning_power": "0.9",
    "training_number_of_steps": "30000",
    "momentum": "0.9",
    "adam_learning_rate": "0.001",
    "adam_epsilon": "1e-08",
    "train_batch_size": "8",
    "weight_decay": "0.00004",
    "train_crop_size": "513,513",
    "last_layer_gradient_multiplier": "1.0",
    "upsample_logits": "true",
    "drop_path_keep_prob": "1.0",
    "tf_initial_checkpoint": None,
    "initialize_last_layer": "true",
    "last_layers_contain_logits_only": "false",
    "slow_start_step": "0",
    "slow_start_learning_rate": "1e-4",
    "fine_tune_batch_norm": "true",
    "min_scale_factor": "0.5",
    "max_scale_factor": "2.",
    "scale_factor_step_size": "0.25",
    "atrous_rates": None,
    "output_stride": "16",
    "hard_example_mining_step": "0",
    "top_k_percent_pixels": "1.0",
    "quantize_delay_step": "-1",
    "dataset": "pascal_voc_seg",
    "train_split": "train",
    "dataset_dir": None,
}
_PREDICT = COMMON | {
    "master": "",
    "checkpoint_dir": None,
    "eval_interval_secs": "300",
    "atrous_rates": None,
    "output_stride": "16",
    "eval_scales": "1.0",
    "add_flipped_images": "false",
    "quantize_delay_step": "-1",
    "dataset": "pascal_voc_seg",
    "dataset_dir": None,
}
EVAL = _PREDICT | {
    "eval_logdir": None,
    "eval_batch_size": "1",
    "eval_crop_size": "513,513",
    "eval_split": "val",
    "max_number_of_evaluations": "0",
}
VIS = _PREDICT | {
    "vis_logdir": None,
    "vis_batch_size": "1",
    "vis_crop_size": "513,513",
    "vis_split": "val",
    "colormap_type": "pascal",
    "also_save_raw_predictions": "false",
    "max_number_of_iterations": "0",
}
EXPORT = COMMON | {
    "checkpoint_path": None,
    "export_path": None,
    "num_classes": "21",
    "crop_size": "513",  # twice
    "atrous_rates": None,
    "output_stride": "8",
    "inference_scales": "1.0",
    "add_flipped_images": "false",
    "quantize_delay_step": "-1",
    "save_inference_graph": "false",
}
FLAGS = {"train.py": TRAIN, "eval.py": EVAL, "vis.py": VIS, "export_model.py": EXPORT}


def lines(text: str, **variables: str) -> list[tuple[str, list[str]]]:
    """Returns the name of the script and the arguments of each command, with variables replaced."""
    for name, value in variables.items():
        text = text.replace(f"${{{name}}}", value)
    calls = [shlex.split(line) for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(call[1].rpartition("/")[2], call[2:]) for call in calls]
