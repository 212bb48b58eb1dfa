package image

import (
	"context"
	"time"

	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/storage"

	"berth.dev/berth/internal/snapshot"
)

// Inspect returns all that the API tells of an image.
func (s *Service) Inspect(ctx context.Context, name string) (image.InspectResponse, error) {
	im, err := s.Resolve(ctx, name)
	if err != nil {
		return image.InspectResponse{}, err
	}
	config := im.Config.Config
	r := image.InspectResponse{
		ID: string(im.ID), RepoTags: []string{}, RepoDigests: []string{}, Comment: im.Comment,
		Author: im.Config.Author, Config: &config,
		Architecture: im.Config.Architecture, Variant: im.Config.Variant, Os: im.Config.OS, OsVersion: im.Config.OSVersion,
		Size: im.Size, RootFS: image.RootFS{Type: im.Config.RootFS.Type}, Metadata: image.Metadata{LastTagTime: im.tagged},
	}
	for _, d := range im.Config.RootFS.DiffIDs {
		r.RootFS.Layers = append(r.RootFS.Layers, string(d))
	}
	if im.Config.Created != nil {
		r.Created = im.Created.Format(time.RFC3339Nano)
	}
	for _, n := range s.namesOf(im.ID) {
		if n.Digest() != "" {
			r.RepoDigests = append(r.RepoDigests, n.Familiar())
		} else {
			r.RepoTags = append(r.RepoTags, n.Familiar())
		}
	}
	r.GraphDriver = &storage.DriverData{Name: s.o.Snapshots.Name}
	if d, ok := s.o.Snapshots.Driver.(snapshot.Describer); ok && im.Top() != "" {
		if r.GraphDriver.Data, err = d.Describe(ctx, im.Top()); err != nil {
			return image.InspectResponse{}, err
		}
	}
	return r, nil
}

// History returns how an image came to be, newest first.
func (s *Service) History(ctx context.Context, name string) ([]image.HistoryResponseItem, error) {
	im, err := s.Resolve(ctx, name)
	if err != nil {
		return nil, err
	}
	list := make([]image.HistoryResponseItem, len(im.Config.History))
	layer := 0
	for i, h := range im.Config.History {
		item := image.HistoryResponseItem{ID: "<missing>", CreatedBy: h.CreatedBy, Comment: h.Comment}
		if h.Created != nil {
			item.Created = h.Created.Unix()
		}
		if !h.EmptyLayer && layer < len(im.Layers) {
			row, _ := s.layers.row(im.Layers[layer])
			item.Size = row.Size
			layer++
		}
		list[len(list)-1-i] = item
	}
	// The newest entries belong to the image and to those that it was built on.
	for i := range list {
		if im == nil {
			break
		}
		list[i].ID = string(im.ID)
		for _, n := range s.namesOf(im.ID) {
			if n.Tag() != "" {
				list[i].Tags = append(list[i].Tags, n.Familiar())
			}
		}
		s.mu.RLock()
		im = s.images[im.Parent]
		s.mu.RUnlock()
	}
	return list, nil
}
