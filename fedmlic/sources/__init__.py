"""What data sets that are read from disk share: parameters, files, rows, groups, objects, COCO's and VOC's readers."""
